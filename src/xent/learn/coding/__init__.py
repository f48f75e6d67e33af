"""Messages coded by what a model expects of them."""
