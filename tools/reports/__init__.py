"""Reports of comparisons: for the terminal, for programs, and as a document with plots."""
