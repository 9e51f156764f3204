"""What Kubernetes and JobSet make of a manifest, written out."""


def pod_and_spec(manifest):
    spec = manifest["spec"]
    if manifest["kind"] == "JobSet":
        (replicated,) = spec["replicatedJobs"]
        assert replicated["replicas"] == 1
        spec = replicated["template"]["spec"]
    return spec["template"]["spec"], spec


def outcome(manifest, code, disrupted=False):
    """What becomes of a job of which a pod ended with an exit code.

    The rules of Kubernetes (pod failure policies: the first rule that matches) and of JobSet
    (failure policies: likewise, of the reason why the Job failed; RestartJobSet without any).
    """
    _, spec = pod_and_spec(manifest)

    def matches(rule):
        if "onPodConditions" in rule:
            return disrupted and {"DisruptionTarget"} == {
                x["type"] for x in rule["onPodConditions"]
            }
        of_codes = rule["onExitCodes"]
        assert of_codes["containerName"] == "main" and 0 not in of_codes["values"]
        return (code in of_codes["values"]) == (of_codes["operator"] == "In")

    rules = spec["podFailurePolicy"]["rules"]
    action = next((rule["action"] for rule in rules if matches(rule)), "Count")
    if manifest["kind"] == "Job":
        assert spec["backoffLimitPerIndex"] > 0
        return {"FailIndex": "failed", "Ignore": "again", "Count": "again, counted"}[action]
    assert spec["backoffLimit"] == 0
    reason = {"FailJob": "PodFailurePolicy", "Count": "BackoffLimitExceeded"}[action]
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    actions = (r["action"] for r in policy["rules"] if reason in r["onJobFailureReasons"])
    return {
        "FailJobSet": "failed",
        "RestartJobSetAndIgnoreMaxRestarts": "again",
        "RestartJobSet": "again, counted",
    }[next(actions, "RestartJobSet")]
