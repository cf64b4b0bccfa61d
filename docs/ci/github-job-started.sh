#!/bin/bash
# GitHub Actions on a self-hosted runner: runs before each job's first step; if it fails, so does the job.
# Put the path of this file into `.env` in the runner's folder, then start the runner again:
#
#     ACTIONS_RUNNER_HOOK_JOB_STARTED=/opt/tunnelmgr/github-job-started.sh
#
# The runner sets no time limit for it; TUNNELMGR_WAIT does.
export TUNNELMGR_WAIT="${TUNNELMGR_WAIT:-300}"
if ! /usr/local/bin/tunnelmgr-wait; then
    echo "::error title=Registry::The registry on localhost:5000 is not ready on this runner; the log above has the reason."
    exit 1
fi
