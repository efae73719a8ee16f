// Every element to another width: zero or sign extension, or truncation of bits that are known to be unused. No register.
module dp_cast #(
  parameter int N = 1,
  parameter int FROM = 8,
  parameter bit SIGNED = 0,
  parameter int TO = 8
) (
  input  logic [N*FROM-1:0] s_data,
  output logic [N*TO-1:0] m_data
);
  for (genvar i = 0; i < N; i++) begin : g
    if (TO <= FROM) assign m_data[i*TO +: TO] = s_data[i*FROM +: TO];
    else assign m_data[i*TO +: TO] = {{(TO-FROM){SIGNED && s_data[i*FROM+FROM-1]}}, s_data[i*FROM +: FROM]};
  end
endmodule
