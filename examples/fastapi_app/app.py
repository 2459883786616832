"""A small service over the claims report: which region paid what.

    REPORT=report/report.sqlite uvicorn app:app

The address, the port and TLS (`UVICORN_HOST`, `UVICORN_PORT`, `UVICORN_SSL_CERTFILE`, …) are uvicorn's own business.
"""

import os
import sqlite3
from typing import Annotated

from fastapi import FastAPI, HTTPException, Path
from pydantic import BaseModel

app = FastAPI(title="Claims")


class Month(BaseModel):
    month: str
    claims: int
    paid: float


def rows(query: str, *values: str) -> list[tuple]:
    database = sqlite3.connect(f"file:{os.environ['REPORT']}?mode=ro", uri=True)
    try:
        return database.execute(query, values).fetchall()
    finally:
        database.close()


@app.get("/regions")
def regions() -> list[str]:
    return [region for (region,) in rows("SELECT DISTINCT region FROM report ORDER BY region")]


@app.get("/regions/{region}")
def months(region: Annotated[str, Path(max_length=40)]) -> list[Month]:
    found = rows("SELECT month, claims, paid FROM report WHERE region = ? ORDER BY month", region)
    if not found:
        raise HTTPException(404, "no such region")
    return [Month(month=month, claims=claims, paid=paid) for month, claims, paid in found]
