"""One function a paper figure; each reads only the results table or a named artifact."""
