"""The commands of hactl, each a function: build the request, send, render."""
