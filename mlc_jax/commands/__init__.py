"""The commands without their flags: a config or a file in, files out."""
