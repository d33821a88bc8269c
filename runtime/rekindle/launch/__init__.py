"""What stands in every pod: starts the workers of a round, watches them, tells the coordinator.

``python -m rekindle.launch train.py --epochs 10`` takes a script (or ``-m module``) and its
arguments, as torchrun does; ``python -m rekindle.launch -- COMMAND...`` takes any command. The
parts, outermost first:

- ``first``: PID 1 where there is an operator, a small process with everything else as its child;
- ``__main__``: signals, arguments, and a termination message on every way out;
- ``agent``: torch's elastic agent with a main loop of our own, which gathers facts and carries
  out what ``decision`` (pure) says;
- ``command`` and ``torchrun_flags`` (pure): what a command line asks the workers to run;
- ``workers`` and ``worker``: the worker processes seen from the agent, and from within;
- ``forkserver`` and ``warm``: the process that they are forked from, likewise; ``preload`` and
  ``imports`` say what it has imported by then, ``variables`` what is in whose environment;
- ``program``, ``joining`` and ``lastlines``: workers that are no Python script, a torchrun within
  one of them, and the error that its log tells; ``streams``: what workers print;
- ``tracker``, ``progress`` (pure), ``tailing``, ``events``, ``forming`` and ``running`` (pure): how
  far a script without our trainer is, and since when it runs;
- ``watcher``, ``watchdog`` (pure) and ``stacks``: whether workers get on, and where they stand;
- ``rendezvous``, ``store`` and ``backend``: the backend ``rekindle`` of torch's rendezvous;
  ``byhand``: how a torchrun without our agent tells that its workers have saved;
- ``session``: what this pod says of itself and what it has been told;
- ``client`` and ``solo``: who it says that to, a coordinator or, without an operator, itself;
- ``inject`` copies all of it into an image without it, ``oldpython`` refuses where that is too old;
- ``exporter``, ``notices``, ``termination``, ``settings``, ``signals``, ``cgroup``: a subject each.

Importing this package is free, because workers import it before they run the user's script.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - the image may be anybody's
    from rekindle.launch.old_python import refuse

    refuse()
