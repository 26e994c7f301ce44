import json
import sys
from pathlib import Path

import benchmarks.spark_versions_job as j

j.CHECKS = {"run": j.check_run}
print(json.dumps(j.main(Path(sys.argv[1]), *sys.argv[2:3])))
