"""Drawing for everybody: text, width, progress and the terminal itself."""
