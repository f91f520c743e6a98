"""Drawing, shared by all: text, width, progress and the terminal itself."""
