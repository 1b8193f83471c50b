"""Groups, criteria, allocation to a target, the plan, surgery and cost."""
