"""The pictures in the documents: taken of the demo while it runs, so that they show what the product shows."""
