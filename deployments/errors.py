"""What ends a command in one line: a person can mend it, and the message says how. Anything else is a bug of ours.

CommandError
  ├─ StartupError            the services of this host did not come up
  ├─ ServerUnreachableError  Prefect's server does not answer, or not as one
  ├─ PoolMissingError        Prefect has no such work pool
  ├─ RunNotFoundError        no run is called so, or several are
  ├─ MoveRefusedError        a run cannot go to another queue
  ├─ UnknownStateError       no state is called so
  ├─ FileNotWrittenError     a prefect.yaml cannot be read or written
  ├─ NameNotForPrefectYamlError  a flow has a name that `prefect deploy` would change
  ├─ DemoFailedError         the demonstration did not end with every instance delivered
  ├─ ToolMissingError        a tool of DCMTK is not installed
  └─ ToolFailedError         a tool of DCMTK did not do what it was started for
"""

from __future__ import annotations


class CommandError(RuntimeError):
    """The command cannot go on, for a reason that a person can mend."""


class StartupError(CommandError):
    """The services of this host did not come up. The message says which, and what its log says."""
