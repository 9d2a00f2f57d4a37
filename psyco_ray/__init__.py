"""psyco_ray: preference learning for counselling responses, on Ray."""
