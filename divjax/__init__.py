"""divjax: divergences and their gradients, exact at every edge and on any number of devices.

Rooms: `core`, `divergences` (from laws), `estimators` (from samples), `losses`, `optim`,
`models`, `train`, `lab`. Each is imported when it is asked for.
"""

__version__ = "0.1.0"
