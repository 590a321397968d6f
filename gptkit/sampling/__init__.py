"""Drawing tokens: the rule, the loop, requests and samples."""
