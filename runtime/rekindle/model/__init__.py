"""What a script trains: the module, its precision, its optimizers, its metrics, how it is built."""
