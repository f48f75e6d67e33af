"""What features tell about a class: mutual information, and where it is seen."""
