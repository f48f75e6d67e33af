"""Evidence of features about a class: mutual information, and maps of where it is seen."""
