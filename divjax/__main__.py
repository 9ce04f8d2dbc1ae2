"""`python -m divjax` is the command `divjax`."""

from divjax.lab.cli import main

raise SystemExit(main())
