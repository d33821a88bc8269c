"""The step where a module, an optimizer or a hook takes a part of it over."""
