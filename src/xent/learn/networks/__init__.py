"""Networks trained by backpropagation."""
