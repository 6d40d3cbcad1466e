"""`python -m service.cli`, as `vouch`."""

from service.cli.main import main

main()
