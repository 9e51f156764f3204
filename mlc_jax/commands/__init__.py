"""From a config or a file to files: what the command line does, without its flags."""
