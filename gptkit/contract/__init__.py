"""Parts of the plugin contract; plugins import them from `gptkit.plugin` and `gptkit.codec`."""
