"""Whether a server keeps the promises of the APIs it speaks. HTTP only: any base URL, any server."""
