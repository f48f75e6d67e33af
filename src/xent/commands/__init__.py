"""The subcommands of ``xent``: each has ``add_arguments(parser)`` and ``run(args) -> int``."""
