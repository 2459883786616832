"""Serve the application over TLS with certificates that live an hour: uvicorn reads them once, this reads them again.

    python serve.py

Reads uvicorn's own variables: `UVICORN_HOST`, `UVICORN_PORT`, `UVICORN_SSL_CERTFILE`, `UVICORN_SSL_KEYFILE`,
`UVICORN_SSL_CA_CERTS`, `UVICORN_SSL_CERT_REQS`.
"""

import logging
import os
import ssl
import threading
import time
from pathlib import Path

import uvicorn

SECONDS = float(os.environ.get("RELOAD_SECONDS", "30"))


def follow(context: ssl.SSLContext, certificate: str, key: str, anchors: str) -> None:
    """Load the files again whenever one of them changed; connections that are open keep what they have."""
    seen = None
    while True:
        try:
            now = [Path(name).stat().st_mtime_ns for name in (certificate, key, anchors)]
            if seen is not None and now != seen:
                context.load_cert_chain(certificate, key)
                context.load_verify_locations(anchors)
                logging.getLogger("uvicorn.error").info("certificate loaded again")
            seen = now
        except (OSError, ssl.SSLError) as error:  # between two files of a pair: they fit in a moment
            logging.getLogger("uvicorn.error").warning("certificate not loaded: %s", error)
            seen = []
        time.sleep(SECONDS)


def main() -> None:
    files = [os.environ[f"UVICORN_SSL_{name}"] for name in ("CERTFILE", "KEYFILE", "CA_CERTS")]
    config = uvicorn.Config(
        "app:app",
        host=os.environ.get("UVICORN_HOST", "127.0.0.1"),
        port=int(os.environ.get("UVICORN_PORT", "8443")),
        ws="none",
        ssl_certfile=files[0],
        ssl_keyfile=files[1],
        ssl_ca_certs=files[2],
        ssl_cert_reqs=int(os.environ.get("UVICORN_SSL_CERT_REQS", ssl.CERT_REQUIRED)),
    )
    config.load()
    threading.Thread(target=follow, args=(config.ssl, *files), daemon=True).start()
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
