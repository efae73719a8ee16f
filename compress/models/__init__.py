"""Reference networks of this project. Each is one file, announced as an entry point of the group `deploy.models`."""
