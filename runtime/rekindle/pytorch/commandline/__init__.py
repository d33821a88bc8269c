"""What `LightningCLI` is made of: a parser of arguments and config files, and what it builds."""
