"""The bus: typed messages over ZeroMQ between the frontend and the workers."""
