"""From a TOML file to validated objects: recipe, options, plugins."""
