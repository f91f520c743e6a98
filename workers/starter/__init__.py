"""The starter model: made of a wheel that any package index has, so that no model hub is needed."""
