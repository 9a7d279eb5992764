"""What a policy may be besides one model with its own weights: several models as one, adapters beside a frozen base."""
