"""Between messages and token ids, and between token ids and text. Engines never see text."""
