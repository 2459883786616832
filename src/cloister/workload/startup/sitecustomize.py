"""Python runs this first where the launcher put this folder on PYTHONPATH: it installs the hooks, or ends the process.

Fails closed: without hooks a program would find its sealed inputs unreadable, and could write in the clear what was to be
sealed. Without ``CLOISTER_RUN`` it does nothing. Another ``sitecustomize`` on the path is run afterwards.
"""

import os
import sys


def _install() -> None:
    try:
        from cloister.workload.agent import access_from_environment  # noqa: PLC0415
        from cloister.workload.hooks import install  # noqa: PLC0415

        install(access_from_environment)
        if os.environ.get("CLOISTER_OPTIMIZE"):
            from cloister.workload.optimizers import install_optimizer  # noqa: PLC0415

            install_optimizer()
    except KeyboardInterrupt:
        import signal  # noqa: PLC0415

        # As a program ends that Ctrl-C finds before it has begun.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:
        sys.stderr.write(
            f"cloister: the hooks of `cloister run` cannot be installed: {type(error).__name__}: {error}\n"
        )
        sys.stderr.flush()
        # An exception, even SystemExit, is for `site` to report or not; this is not.
        os._exit(70)


def _run_next() -> None:
    # Each Python process pays for what is imported here.
    from importlib.machinery import PathFinder  # noqa: PLC0415
    from importlib.util import module_from_spec  # noqa: PLC0415

    here = os.path.realpath(os.path.dirname(__file__))  # noqa: PTH120 -- as above
    spec = PathFinder.find_spec(
        "sitecustomize", [entry for entry in sys.path if os.path.realpath(entry or ".") != here]
    )
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


if os.environ.get("CLOISTER_RUN"):
    _install()
_run_next()
