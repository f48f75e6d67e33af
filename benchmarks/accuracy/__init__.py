"""The errors of every loss against many digits, by type, engine and margin: the atlas."""
