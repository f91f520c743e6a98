"""The tags around a call of a tool in a model's text."""

CALL, CALL_END = "<tool_call>", "</tool_call>"
