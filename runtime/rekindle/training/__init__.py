"""One call of ``fit``, from the script's objects to the last step.

``assembly`` makes a `run.Run` of what the script gave, ``loop`` moves it forward step by step, and
``state`` turns it into a tree that can be saved, and back. The rest are the parts of a step, and
the checks before the first one.
"""
