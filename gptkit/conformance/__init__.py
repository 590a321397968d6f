"""The plugin contract as assertions; the tests of plugins import them from `gptkit.testing`."""
