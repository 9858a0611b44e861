"""The door to Ray Jobs: submits over the dashboard's address. Leaves to others: what is shipped (detached)."""

from __future__ import annotations

from mlops.errors import EnvironmentFault


class RayJobs:
    """Jobs of the cluster whose dashboard answers at `http://…`; implements `mlops.training.detached.Jobs`."""

    def __init__(self, address: str) -> None:
        self._address = address

    def submit(self, entrypoint: str, *, job_id: str, runtime_env: dict[str, object], tags: dict[str, str]) -> str:
        """See `Jobs`.

        Raises:
            EnvironmentFault: The dashboard does not answer, or refuses the job.
        """
        from ray.job_submission import JobSubmissionClient  # loads ray, which costs a second

        try:
            client = JobSubmissionClient(self._address)
            return str(
                client.submit_job(entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env, metadata=tags)
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            said = (str(error).strip().splitlines() or [""])[0]
            raise EnvironmentFault(
                f"Ray at {self._address} did not take the job: {said}",
                hint="`--detach` on a cluster needs the dashboard's address, http://HOST:8265, in RAY_JOBS_ADDRESS",
            ) from error
