//! How many values a JSON text holds, without parsing it: commas and opening brackets outside strings.
//!
//! A parser's cost grows with the number of values, not of bytes, and it stops everything else in its process meanwhile: a
//! text of 32 MiB may hold one image or sixteen million numbers. This walk costs about as much as copying the text, and
//! ends as soon as there are too many.
//!
//! It does not know whether the text is JSON: of any other text it gives some number, which is of no use and no harm.

/// The number of commas, `[` and `{` outside strings; `most + 1` as soon as there are more than `most`.
pub fn count(text: &[u8], most: usize) -> usize {
    let mut found = 0;
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => at = string_end(text, at),
            b',' | b'[' | b'{' => {
                found += 1;
                if found > most {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// Where the string that began before `at` has ended: behind its closing quote, or at the end of the text.
fn string_end(text: &[u8], mut at: usize) -> usize {
    while let Some(byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => return at,
            b'\\' => at += 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_and_texts_are_not() {
        let cases: [(&[u8], usize); 9] = [
            (b"", 0),
            (b"1", 0),
            (b"[1,2,3]", 3),
            (br#"{"a":[1,2],"b":{}}"#, 5),
            (br#"{"a":",,,[[[{{{"}"#, 1),
            (br#"["a\"b,c\\",1]"#, 2),
            (br#"["a"#, 1),
            (br#"["a\"#, 1),
            (b"\xff,\x00[", 2),
        ];
        for (text, expected) in cases {
            assert_eq!(count(text, usize::MAX), expected, "{text:?}");
        }
    }

    #[test]
    fn counting_ends_when_there_are_too_many() {
        assert_eq!(count(&[b','; 1000], 10), 11);
        assert_eq!(count(&[b','; 10], 10), 10);
        assert_eq!(count(b",", 0), 1);
    }
}
