"""The commands: what a user types. They read arguments, call one function, and print."""
