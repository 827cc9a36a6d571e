"""One module a runtime: whether files are its format, whether they are whole, and what they take, give and need."""
