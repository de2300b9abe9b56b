//! As much of HTTP/1.1 as a scraper needs: one request without a body, one answer, and the end.
//!
//! Invariant: a request is read to the end of its head, which is bounded, and not understood beyond
//! its method and path. Whatever comes, there is one answer, and then the connection is closed.

/// Answers what has come so far. None if the head of the request has not come whole.
pub(super) fn answer(request: &[u8], text: impl FnOnce() -> Vec<u8>) -> Option<Vec<u8>> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    match head.parse(request) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if request.len() < MOST_BYTES => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Some(failure("431 Request Header Fields Too Large", ""));
        }
        Err(_) => return Some(failure("400 Bad Request", "")),
    }
    let path = head.path.unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    Some(match (head.method.unwrap_or_default(), path) {
        ("GET", "/metrics" | "/") => whole("200 OK", CONTENT_TYPE, "", &text(), true),
        ("HEAD", "/metrics" | "/") => whole("200 OK", CONTENT_TYPE, "", &text(), false),
        ("GET" | "HEAD", _) => failure("404 Not Found", ""),
        _ => failure("405 Method Not Allowed", "Allow: GET, HEAD\r\n"),
    })
}

fn failure(status: &str, more: &str) -> Vec<u8> {
    whole(status, "text/plain; charset=utf-8", more, format!("{status}\n").as_bytes(), true)
}

fn whole(status: &str, content_type: &str, more: &str, body: &[u8], with_body: bool) -> Vec<u8> {
    let length = body.len();
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n{more}\
         Connection: close\r\n\r\n"
    )
    .into_bytes();
    if with_body {
        answer.extend_from_slice(body);
    }
    answer
}

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Bytes of the head of a request.
const MOST_BYTES: usize = 8 << 10;
const MOST_HEADERS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn status(request: &str) -> Option<String> {
        let answer = answer(request.as_bytes(), || b"# EOF\n".to_vec())?;
        let answer = String::from_utf8(answer).unwrap();
        Some(answer.lines().next().unwrap().to_owned())
    }

    #[test]
    fn every_request_has_one_answer() {
        for (case, request, expected) in [
            ("a scraper", "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK"),
            ("an old one", "GET /metrics HTTP/1.0\r\n\r\n", "200 OK"),
            ("with a query", "GET /metrics?x=1 HTTP/1.1\r\n\r\n", "200 OK"),
            ("only the head", "HEAD / HTTP/1.1\r\n\r\n", "200 OK"),
            ("elsewhere", "GET /x HTTP/1.1\r\n\r\n", "404 Not Found"),
            ("other methods", "POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
            ("no http", "\u{1}\u{2}\r\n\r\n", "400 Bad Request"),
            ("our own", "UNISONO\n\0\0\0", "400 Bad Request"),
        ] {
            assert_eq!(status(request), Some(format!("HTTP/1.1 {expected}")), "{case}");
        }
    }

    #[test]
    fn g8_a_head_is_waited_for_and_bounded() {
        assert_eq!(status(""), None);
        assert_eq!(status("GET /metrics HTTP/1.1\r\nHost: x\r\n"), None);
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(MOST_BYTES));
        let expected = "HTTP/1.1 431 Request Header Fields Too Large";
        assert_eq!(status(&long).as_deref(), Some(expected));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(MOST_HEADERS + 1));
        assert_eq!(status(&many).as_deref(), Some(expected));
    }

    #[test]
    fn the_length_is_that_of_the_body() {
        let answer = answer(b"GET / HTTP/1.1\r\n\r\n", || b"# EOF\n".to_vec()).unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("\r\nContent-Length: 6\r\n"), "{head}");
        assert_eq!(body, "# EOF\n");
    }
}
