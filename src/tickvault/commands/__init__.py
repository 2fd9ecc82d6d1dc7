"""What a user types: one room for each group of commands, over one set of options; `cli` puts them together."""
