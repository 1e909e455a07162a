"""A trained model looked over: the checks, and the verdicts of `pdae doctor`."""
