"""Report on insurance claims: join claims with their policies, sum up by region and month, list what stands out.

    python claims_report.py --data insurance --output report

`--data` holds `claims.parquet` (one file, or a folder of parts) and `policies.parquet`. The report is a Parquet file, the
same as CSV for people, and an SQLite database for the application that shows it.
"""

import argparse
import sqlite3
from pathlib import Path

import pandas as pd


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--outliers", type=int, default=20, help="how many claims to list")
    options = parser.parse_args()

    claims = pd.read_parquet(options.data / "claims.parquet")
    policies = pd.read_parquet(options.data / "policies.parquet")
    joined = claims.merge(policies, on="policy", how="left", validate="many_to_one")
    joined["month"] = joined["day"].dt.strftime("%Y-%m")

    report = (
        joined.groupby(["region", "month"], as_index=False)
        .agg(claims=("amount", "size"), paid=("amount", "sum"), highest=("amount", "max"))
        .sort_values(["region", "month"], ignore_index=True)
    )
    report["paid"] = report["paid"].round(2)
    spread = joined.groupby("region")["amount"].transform(
        lambda amounts: (amounts - amounts.mean()) / amounts.std()
    )
    outliers = joined.assign(spread=spread.round(3)).nlargest(options.outliers, "spread")

    options.output.mkdir(parents=True, exist_ok=True)
    report.to_parquet(options.output / "report.parquet", index=False)
    report.to_csv(options.output / "report.csv", index=False)
    database = sqlite3.connect(options.output / "report.sqlite")
    with database:
        report.to_sql("report", database, if_exists="replace", index=False)
        columns = ["claim", "patient", "region", "month", "amount", "spread"]
        outliers[columns].to_sql("outliers", database, if_exists="replace", index=False)
        database.execute("CREATE INDEX IF NOT EXISTS by_region ON report (region)")
    database.close()
    print(f"{len(claims)} claims, {report['paid'].sum():.2f} paid, {len(report)} rows in {options.output}")


if __name__ == "__main__":
    main()
