"""Configuration files in TOML, validated as a whole. `docs/reference/configuration.md` is the manual."""
