"""What the commands do, without their flags: a config or a file in, files out."""
