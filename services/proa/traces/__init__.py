"""`proa trace`: receives spans over OTLP and draws the story of one request.

receiver    OTLP over HTTP and gRPC on loopback
otlp        its messages as our Spans, within limits
book        the spans kept, found by trace and by link
story       a request with its parity and the other members of its group
choice      which stories have come to rest and are wanted
view        rows, marks and the verdict: what every picture shows
terminal    the picture in a terminal
page        the picture as one HTML file
"""
